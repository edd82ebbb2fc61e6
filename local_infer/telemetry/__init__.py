"""OpenTelemetry: traces and metrics of requests by OTLP, in a process of its own."""
