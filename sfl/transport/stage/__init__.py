"""From a stage server to the stage behind it: three tiers and more."""
