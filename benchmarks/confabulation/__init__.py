"""Whether a decoded text is supported: texts drawn, claims checked, figures with intervals."""
