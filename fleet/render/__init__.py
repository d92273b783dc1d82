"""Draw the Grafana dashboards without a Grafana: the same JSON, the same queries, one static page."""
