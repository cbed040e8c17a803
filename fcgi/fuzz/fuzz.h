/*
 * fuzz.h
 *	  What the fuzz targets share.
 *
 * A target is a function that libFuzzer calls with any bytes. It checks that what the
 * responder promises of its input holds, beyond what the sanitizers see by themselves.
 */
#ifndef REGPILOT_FUZZ_H
#define REGPILOT_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the run, which keeps the input, when a promise is broken. */
#define CHECK(promise)                                                                             \
	do                                                                                             \
	{                                                                                              \
		if (!(promise))                                                                            \
		{                                                                                          \
			fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #promise);                  \
			abort();                                                                               \
		}                                                                                          \
	} while (0)

extern int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

#endif
