"""Care of the state: what may go, what is packed together, copied, brought back, or must be forgotten."""
