/*
 * array.c
 *	  Arrays as parameters, in PostgreSQL's binary format: see array_recv() there.
 */
#include "array.h"

#include <endian.h>
#include <string.h>

/* A head, with integers in network byte order as all of it. */
typedef struct ArrayHead
{
	uint32_t dimensions;
	uint32_t has_nulls; /* 1: there may be some */
	uint32_t type;
	uint32_t count;
	uint32_t lower_bound;
} ArrayHead;

void
array_begin(Buffer *array, uint32_t type)
{
	ArrayHead head = {
		.dimensions = htobe32(1),
		.has_nulls = htobe32(1),
		.type = htobe32(type),
		.lower_bound = htobe32(1),
	};

	array->length = 0;
	array->failed = false;
	buffer_append(array, &head, sizeof(head));
}

void
array_append(Buffer *array, const void *bytes, size_t length)
{
	uint32_t network = htobe32((uint32_t) length);
	char *end = buffer_reserve(array, sizeof(network) + length);

	if (end == NULL)
		return;
	memcpy(end, &network, sizeof(network));
	memcpy(end + sizeof(network), bytes, length);
	array->length += sizeof(network) + length;
}

void
array_append_null(Buffer *array)
{
	uint32_t network = UINT32_MAX;

	buffer_append(array, &network, sizeof(network));
}

void
array_append_text(Buffer *array, const char *text)
{
	if (text != NULL)
		array_append(array, text, strlen(text));
	else
		array_append_null(array);
}

void
array_append_int32(Buffer *array, int32_t value)
{
	uint32_t network = htobe32((uint32_t) value);

	array_append(array, &network, sizeof(network));
}

void
array_append_int64(Buffer *array, int64_t value)
{
	uint64_t network = htobe64((uint64_t) value);

	array_append(array, &network, sizeof(network));
}

void
array_end(Buffer *array, int count)
{
	uint32_t network = htobe32((uint32_t) count);

	if (!array->failed)
		memcpy(array->data + offsetof(ArrayHead, count), &network, sizeof(network));
}
