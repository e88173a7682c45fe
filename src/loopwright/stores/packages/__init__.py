"""The store of packages, and the confined process in which a package is loaded first."""
