"""`sfl plan`: what a planner would do with a run's file, without running anything."""
