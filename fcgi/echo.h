/*
 * echo.h
 *	  builtin:echo, the upstream that needs no account: it says what it heard.
 */
#ifndef REGPILOT_ECHO_H
#define REGPILOT_ECHO_H

#include "upstream.h"

/* Answers a request as model; id is to tell answers apart. Of call, body and secret are not used. */
extern UpstreamResult echo_call(UpstreamCall *call, const Chat *chat, const char *model,
								const char *id) __attribute__((warn_unused_result));

#endif
