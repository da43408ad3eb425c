"""Scripts that write pages and dashboards, and measure the house."""
