/*
 * listener.h
 *	  The socket on which the web server finds us.
 */
#ifndef REGPILOT_LISTENER_H
#define REGPILOT_LISTENER_H

/*
 * Opens what config says, or takes over descriptor 0. Gives a nonblocking
 * listening socket; -1 after a message.
 */
extern int listener_open(void) __attribute__((warn_unused_result));

#endif
