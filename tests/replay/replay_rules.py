"""The rule that replay tests count the hits of."""

RULE_A = """\
schema_version: 1
title: A
id: 6b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e01
name: a
severity: medium
detection: {s: {keywords: {any: [hide]}}, condition: s}
"""
