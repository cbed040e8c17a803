/*
 * asset.h
 *	  Files that are part of the program.
 */
#ifndef REGPILOT_ASSET_H
#define REGPILOT_ASSET_H

#include <stddef.h>

typedef struct Asset
{
	const char *path; /* of its address */
	const char *type;
	const char *begin;
	const char *end;
} Asset;

/* The one at the path, of so many bytes; NULL: there is none. */
extern const Asset *asset_find(const char *path, size_t length);

#endif
