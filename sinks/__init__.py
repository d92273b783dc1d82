"""From Kafka into ClickHouse, exactly once; and both of them embedded, for one machine."""
