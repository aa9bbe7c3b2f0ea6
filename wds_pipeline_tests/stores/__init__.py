"""Every kind of store, behind one set of tests: what it must do, and what docs/stores.md says it does."""
