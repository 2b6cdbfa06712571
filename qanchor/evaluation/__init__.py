"""Probes, metrics, intervals, evaluation of soft prompts, backtest."""
