/*
 * embedding.c
 *	  What builtin:echo has for an embedding: the words of a text, hashed.
 */
#include "embedding.h"

#include <ctype.h>
#include <endian.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* FNV-1a (offset and prime for 64 bits) of the bytes in lower case, and its bits well mixed. */
static uint64_t
hash_feature(const char *feature, size_t length)
{
	uint64_t hash = 0xcbf29ce484222325;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ (uint64_t) tolower((unsigned char) feature[i])) * 0x100000001b3;
	hash = (hash ^ hash >> 33) * 0xff51afd7ed558ccd;
	return hash ^ hash >> 33;
}

void
embedding_begin(float *vector, int dimensions)
{
	memset(vector, 0, sizeof(*vector) * (size_t) dimensions);
}

void
embedding_add(float *vector, int dimensions, const char *feature, size_t length)
{
	uint64_t hash = hash_feature(feature, length);

	/* The sign lets features that share a place cancel out on average. */
	vector[hash % (uint64_t) dimensions] += hash >> 63 ? -1 : 1;
}

void
embedding_add_words(float *vector, int dimensions, const char *text, size_t length)
{
	size_t start = 0;

	for (size_t i = 0; i <= length; i++)
	{
		/* Letters, digits, and all beyond ASCII. */
		if (i < length && (isalnum((unsigned char) text[i]) || (unsigned char) text[i] >= 0x80))
			continue;
		if (i > start)
			embedding_add(vector, dimensions, text + start, i - start);
		start = i + 1;
	}
}

void
embedding_finish(float *vector, int dimensions)
{
	double length = 0;

	for (int i = 0; i < dimensions; i++)
		length += (double) vector[i] * vector[i];
	length = sqrt(length);
	if (length == 0)
		length = vector[0] = 1; /* no words, or they have cancelled out */
	for (int i = 0; i < dimensions; i++)
		vector[i] = (float) (vector[i] / length);
}

/* Base64 (RFC 4648, 4) of the numbers, each of 4 bytes, the lowest first. */
static void
print_base64(const float *vector, int dimensions, Buffer *text)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	unsigned char bytes[4 * EMBEDDING_DIMENSIONS_MAX + 2] = {0};
	int length = 4 * dimensions;

	for (int i = 0; i < dimensions; i++)
	{
		uint32_t number;

		memcpy(&number, &vector[i], sizeof(number));
		number = htole32(number);
		memcpy(bytes + 4 * i, &number, sizeof(number));
	}
	for (int i = 0; i < length; i += 3)
	{
		uint32_t group = (uint32_t) bytes[i] << 16 | (uint32_t) bytes[i + 1] << 8 | bytes[i + 2];
		char four[4] = {digits[group >> 18], digits[group >> 12 & 63],
						i + 1 < length ? digits[group >> 6 & 63] : '=',
						i + 2 < length ? digits[group & 63] : '='};

		buffer_append(text, four, sizeof(four));
	}
}

void
embedding_print(const float *vector, int dimensions, bool base64, Buffer *text)
{
	if (base64)
	{
		buffer_append(text, "\"", 1);
		print_base64(vector, dimensions, text);
		buffer_append(text, "\"", 1);
		return;
	}
	for (int i = 0; i < dimensions; i++)
		buffer_printf(text, "%c%.9g", i == 0 ? '[' : ',', vector[i]);
	buffer_append(text, "]", 1);
}
