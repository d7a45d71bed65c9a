"""The vLLM plugin: rows of a running engine, by an operation inside its compiled graph.

vLLM finds :func:`nae_monitor.integrations.vllm.register.register` by its entry point.
"""
