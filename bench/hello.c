/*-------------------------------------------------------------------------
 *
 * hello.c
 *		The baseline of the HTTP benchmarks: a libfcgi program that only says
 *		hello, with as many threads as there may be kept connections.
 *
 *	hello SOCKET THREADS
 *
 *-------------------------------------------------------------------------
 */
#include <fcgiapp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static void *
serve(void *socket)
{
	FCGX_Request request;

	FCGX_InitRequest(&request, *(int *) socket, 0);
	while (FCGX_Accept_r(&request) == 0)
	{
		FCGX_PutS("Content-Type: application/json\r\n\r\n{\"hello\":true}", request.out);
		FCGX_Finish_r(&request);
	}
	return NULL;
}

int
main(int argc, char **argv)
{
	int socket;
	int threads;
	pthread_t thread;

	if (argc != 3)
	{
		fprintf(stderr, "usage: hello SOCKET THREADS\n");
		return 2;
	}
	FCGX_Init();
	signal(SIGTERM, SIG_DFL); /* libfcgi has taken it */
	socket = FCGX_OpenSocket(argv[1], 1024);
	threads = atoi(argv[2]);
	for (int i = 0; i < threads; i++)
	{
		if (pthread_create(&thread, NULL, serve, &socket) != 0)
			return 1;
	}
	pthread_join(thread, NULL);
	return 0;
}
