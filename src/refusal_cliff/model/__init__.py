"""A model under study: what it is made of, measured and ablated while it runs."""
