"""Facts: what is recorded, in which words, and in which form. Everything in here is pure."""
