/*
 * hex.h
 *	  Bytes as hexadecimal digits.
 */
#ifndef REGPILOT_HEX_H
#define REGPILOT_HEX_H

#include <stddef.h>

/* Writes two digits for each byte, and a NUL. */
static inline void
hex_encode(const unsigned char *bytes, size_t count, char *text)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < count; i++)
	{
		text[2 * i] = digits[bytes[i] >> 4];
		text[2 * i + 1] = digits[bytes[i] & 15];
	}
	text[2 * count] = '\0';
}

#endif
