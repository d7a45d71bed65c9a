"""The SGLang plugin. Experimental: written against SGLang 0.5.23 and never run with it.

SGLang finds :func:`nae_monitor.integrations.sglang.register.register` by its entry point.
"""
