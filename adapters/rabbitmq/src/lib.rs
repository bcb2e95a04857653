//! RabbitMQ adapter of anybroker
