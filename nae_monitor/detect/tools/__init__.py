"""What rule authors work with: explain, backtest, compare, measure, lock, format, describe."""
