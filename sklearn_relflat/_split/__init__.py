"""A model as features and the head behind them."""
