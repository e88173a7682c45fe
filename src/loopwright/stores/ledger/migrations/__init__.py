"""Changes of the ledger's schema: numbered, oldest first, never edited once released."""
