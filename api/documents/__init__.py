"""JSON documents that REST, the store and engines exchange, and the values they stand for."""
