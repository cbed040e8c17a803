/*
 * log.c
 *	  Messages to the operator, on stderr, one line each.
 */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_SIZE 1024

/*
 * Writes one line by one write(), so that threads do not mix theirs. Control
 * characters (the database's messages have newlines) become spaces.
 */
void
log_line(const char *format, ...)
{
	static const char prefix[] = "regpilot-fcgi: ";
	char line[LINE_SIZE];
	size_t length;
	va_list arguments;

	memcpy(line, prefix, sizeof(prefix));
	va_start(arguments, format);
	vsnprintf(line + sizeof(prefix) - 1, LINE_SIZE - sizeof(prefix), format, arguments);
	va_end(arguments);

	length = strlen(line);
	for (size_t i = 0; i < length; i++)
	{
		if ((unsigned char) line[i] < ' ' || line[i] == 0x7f)
			line[i] = ' ';
	}
	while (length > 0 && line[length - 1] == ' ')
		length--;
	line[length++] = '\n';

	/* There is nowhere to report that stderr cannot be written. */
	if (write(STDERR_FILENO, line, length) < 0)
		return;
}
