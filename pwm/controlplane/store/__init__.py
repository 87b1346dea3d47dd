"""The event store: an append-only log with heads, on etcd or in memory. It knows no resource."""
