/*-------------------------------------------------------------------------
 *
 * argument.h
 *		The arguments of the functions that make and change keys.
 *
 * Each function takes the argument with that number, judges it, and raises an
 * error (ERRCODE_NULL_VALUE_NOT_ALLOWED, or else
 * ERRCODE_INVALID_PARAMETER_VALUE) if it will not do.  Judge all arguments
 * before anything is written: a violated CHECK would show the failing row, with
 * its digest.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_ARGUMENT_H
#define REGPILOT_ARGUMENT_H

#include "regpilot.h"

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "utils/array.h"

#include "compat.h"

#define NAME_MAX_LENGTH 200 /* characters, of a project or key */
#define HINT_MAX_LENGTH 64	/* characters */

/* Any argument that must not be null; name is the parameter's. */
extern void argument_require(FunctionCallInfo fcinfo, int argument, const char *name);

/* A wrong argument as an error may show it: not too long, and no key. */
extern const char *argument_shown(const text *value);

/*
 * A text of 1 to max_length printable characters without a key among them, such as
 * ("name", "key") for the name of a key.
 */
extern text *argument_label(FunctionCallInfo fcinfo, int argument, const char *what,
							const char *of_what, int max_length);

/* One of the environments that a key can be for, or NULL. */
extern text *argument_environment(FunctionCallInfo fcinfo, int argument);

/* Permissions that a key can hold, at least one, each once. */
extern ArrayType *argument_permissions(FunctionCallInfo fcinfo, int argument);

/* The 32 bytes of a digest, which stay the caller's.  Errors do not show it. */
extern const uint8 *argument_digest(FunctionCallInfo fcinfo, int argument);

/*
 * Those that may be null.  If so, they are left to the caller; else a time to
 * come, and a limit of one request or more.
 */
extern void argument_check_expiry(FunctionCallInfo fcinfo, int argument);
extern void argument_check_limit(FunctionCallInfo fcinfo, int argument);

/* now() and an interval of no time or more. */
extern TimestampTz argument_overlap_end(FunctionCallInfo fcinfo, int argument);

#endif /* REGPILOT_ARGUMENT_H */
