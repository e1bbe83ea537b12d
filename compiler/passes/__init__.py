"""Passes: Program -> Program. Each leaves a program that `check` accepts; nothing to do = the same program back."""
