"""Probes, metrics, intervals, baselines, backtest."""
