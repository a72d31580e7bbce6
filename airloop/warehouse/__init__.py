"""Iceberg tables, their branches and snapshots, and the store of artifacts and manifests."""
