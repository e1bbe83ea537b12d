"""Placement: where every value of a program lives on a mesh, and which collectives join what differs."""
