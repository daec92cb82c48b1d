"""Pure decisions: SLA, attainment, shift rule, selection, load bands. No I/O, no clock."""
