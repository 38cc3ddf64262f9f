"""The rules: what facts mean, what may follow, what to do next. Everything in here is pure."""
