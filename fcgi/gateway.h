/*
 * gateway.h
 *	  The endpoints that pass requests on to upstreams.
 */
#ifndef REGPILOT_GATEWAY_H
#define REGPILOT_GATEWAY_H

#include "exchange.h"

/* Answers an authorised chat request. stream_default: where the body does not say. */
extern void gateway_chat(Exchange *exchange, bool stream_default);

/* Answers an authorised request for embeddings. */
extern void gateway_embeddings(Exchange *exchange);

/* GET /v1/models and GET /v1/models/{id}: the names that a client can ask for. */
extern void gateway_models(Exchange *exchange);
extern void gateway_model(Exchange *exchange);

#endif
