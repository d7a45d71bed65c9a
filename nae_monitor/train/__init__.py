"""Train and evaluate an NLA pair: corpus, activations, targets, AR, AV, controls, export."""
