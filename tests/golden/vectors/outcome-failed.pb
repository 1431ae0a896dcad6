*,
engine_failedthe engine process died 