"""Probes, metrics, intervals, baselines and backtest."""
