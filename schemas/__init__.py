"""The one declaration of every stream, and what follows from it: C, numpy, Avro, SQL, documentation."""
