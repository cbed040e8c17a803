/*
 * asset.c
 *	  Files that are part of the program.
 */
#include "asset.h"

#include <string.h>

/* The assembler reads the file, whose path is seen from this directory. */
#define INCLUDE(name, file)                                                                        \
	__asm__(".section .rodata\n" #name "_begin:\n.incbin \"" file "\"\n" #name                     \
			"_end:\n.byte 0\n.previous\n");                                                        \
	extern const char name##_begin[] __attribute__((visibility("hidden")));                        \
	extern const char name##_end[] __attribute__((visibility("hidden")))

INCLUDE(page, "dashboard/index.html");
INCLUDE(script, "dashboard/app.js");
INCLUDE(style, "dashboard/style.css");
INCLUDE(icon, "dashboard/icon.svg");
INCLUDE(openapi, "openapi.json");

static const Asset assets[] = {
	{"/dashboard/", "text/html; charset=utf-8", page_begin, page_end},
	{"/dashboard/app.js", "text/javascript; charset=utf-8", script_begin, script_end},
	{"/dashboard/style.css", "text/css; charset=utf-8", style_begin, style_end},
	{"/dashboard/icon.svg", "image/svg+xml", icon_begin, icon_end},
	{"/openapi.json", "application/json", openapi_begin, openapi_end},
};

const Asset *
asset_find(const char *path, size_t length)
{
	for (size_t i = 0; i < sizeof(assets) / sizeof(assets[0]); i++)
	{
		if (strlen(assets[i].path) == length && memcmp(assets[i].path, path, length) == 0)
			return &assets[i];
	}
	return NULL;
}
