"""The paper's table, measured."""
