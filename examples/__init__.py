"""Things to run beside the function; nothing in `metrics` imports them."""
