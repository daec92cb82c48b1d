"""What every endpoint shares: keys, errors, paging, idempotency, events, settings, metrics."""
