"""Messages with schemas: Avro, Protobuf, and JSON Schema, of a schema registry or of schema files."""
