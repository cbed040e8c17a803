/*
 * log.h
 *	  Messages to the operator, on stderr, one line each.
 *
 * Never pass a key, a secret, a prompt or an answer.
 */
#ifndef REGPILOT_LOG_H
#define REGPILOT_LOG_H

extern void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
