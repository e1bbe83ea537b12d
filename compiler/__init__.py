"""Typed programs, lowering, schedules and builds."""
