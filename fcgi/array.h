/*
 * array.h
 *	  Arrays as parameters, in PostgreSQL's binary format; for authorizer.c and
 *	  recorder.c.
 *
 * A buffer holds one array. Between array_begin() and array_end() come its elements,
 * of one dimension, in the binary format of their type.
 */
#ifndef REGPILOT_ARRAY_H
#define REGPILOT_ARRAY_H

#include "buffer.h"

#include <stdint.h>

/* OIDs of built-in types, from PostgreSQL's catalog/pg_type.dat */
#define INT8OID 20
#define INT4OID 23
#define TEXTOID 25
#define UUIDOID 2950
#define INT4ARRAYOID 1007
#define TEXTARRAYOID 1009
#define INT8ARRAYOID 1016
#define UUIDARRAYOID 2951

/* Begins an array of elements of that type; what was in the buffer is forgotten. */
extern void array_begin(Buffer *array, uint32_t type);

extern void array_append(Buffer *array, const void *bytes, size_t length);
extern void array_append_null(Buffer *array);
extern void array_append_text(Buffer *array, const char *text); /* NULL: a null */
extern void array_append_int32(Buffer *array, int32_t value);
extern void array_append_int64(Buffer *array, int64_t value);

/* Says how many elements there are. The buffer may have failed: see buffer.h. */
extern void array_end(Buffer *array, int count);

#endif
