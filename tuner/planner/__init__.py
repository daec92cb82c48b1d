"""Every plan of a described node judged against an SLA."""
