"""Models by name: references, the promotion ledger, and the registry whose aliases the ledger decides."""
