"""The mart: one SQL database, one transaction per fact."""
