/*
 * gateway.h
 *	  The endpoints that pass requests on to upstreams.
 */
#ifndef REGPILOT_GATEWAY_H
#define REGPILOT_GATEWAY_H

#include "exchange.h"

/* Answers an authorised chat request. stream_default: where the body does not say. */
extern void gateway_chat(Exchange *exchange, bool stream_default);

#endif
